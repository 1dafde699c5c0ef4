"""The state of a pass, in integers or floats: its steps, what fits, how it rests, and when that is looked at."""
