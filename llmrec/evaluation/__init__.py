"""Metrics, the evaluator, significance and result files."""
