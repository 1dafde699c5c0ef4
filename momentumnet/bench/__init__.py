"""Benchmarks: what each measures in a folder of its own, and in five others what several of them share.

These are ``data``, ``networks``, ``measuring``, ``trainings`` and ``reporting``.

The command line ``momentumnet bench`` (`momentumnet.cli.bench`) runs them.
"""
