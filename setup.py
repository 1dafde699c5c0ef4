"""Build script; the metadata is in pyproject.toml, the native extension will be declared here."""

from setuptools import setup

setup()
