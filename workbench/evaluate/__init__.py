"""Judging a model: prompt sets and scorers, statistics, speed, agreement."""
