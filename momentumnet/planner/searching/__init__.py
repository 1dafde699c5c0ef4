"""The bytes over a step that choices lead to, and the quickest choices within a budget."""
