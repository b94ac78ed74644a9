"""Names of the forward statistics, in a module that does not import torch."""

# Column name → what it is. Nats where a unit is due.
FORWARD_STATISTICS: dict[str, str] = {
    "nll": "mean negative log-likelihood of the response tokens, nats",
    "nll_median": "median of the same",
    "nll_p90": "90th percentile of the same",
    "nll_std": "standard deviation of the same (population)",
    "nll_first_quarter": "mean over the first quarter of the response",
    "nll_new_tokens": "mean over tokens that the response has not held before: what only "
    "the prompt can foretell",
    "nll_end": "of the last scored token, as a rule the one that ends the turn",
    "entropy": "mean entropy of the predictions, nats",
    "surprise": "mean of (negative log-likelihood − entropy), nats",
    "surprise_peak": "largest mean surprise of eight tokens in a row",
    "log_rank": "mean of log(1 + rank of the label)",
    "outside_top5": "share of labels outside the five most likely tokens",
    "outside_top100": "share of labels outside the hundred most likely tokens",
}
