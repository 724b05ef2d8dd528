"""Ansible plugins of this testbed; module_utils holds what the hypervisors and the analysis share."""
