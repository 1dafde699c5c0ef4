"""Benchmarks: what each measures in a folder of its own, and beside the folders what several of them share.

The command line ``momentumnet bench`` (`momentumnet.cli.bench`) runs them.
"""
