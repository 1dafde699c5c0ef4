"""The tape of a pass, taken back step by step in backward by recomputing branches."""
