"""Forward time of networks without some of their channels or blocks: masked and shrunk."""
