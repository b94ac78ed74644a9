"""The assets of the graph, and the steps behind them."""
