"""What each unit of a step keeps and costs, and the ways in which it can be kept."""
