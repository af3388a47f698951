"""Evaluation: who is asked what and when (protocols), ranks with ties broken at random, metrics,
reports."""
