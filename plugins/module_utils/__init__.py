"""Shared by the modules, which run on the hypervisors, and by the analysis."""
