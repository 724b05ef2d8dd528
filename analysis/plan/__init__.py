"""What is to be measured: variables, workloads, policies and the cells made of them."""
