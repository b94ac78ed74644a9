"""What people see: plots, tables and pages."""
