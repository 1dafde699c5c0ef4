"""The scale of a stream's integers: how fine it has to be, and what passes have taught."""
