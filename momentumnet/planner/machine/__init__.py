"""What the machine has: free memory, budgets in bytes, the link to the host; garbage collections put off."""
