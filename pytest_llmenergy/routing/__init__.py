"""Fits and a workload to a plan."""
