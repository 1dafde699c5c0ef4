"""The exact arithmetic of a momentum step: integers, the digits that gamma loses, packing; knows no autograd graph."""
