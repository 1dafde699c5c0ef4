"""Modules outside the streams: checkpointed or offloaded; streams that have ended in front of them."""
