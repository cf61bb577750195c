"""Modules under the names that they had before there were packages: class paths in saved models and pickles name them.

`lacos_st.__path__` ends with this folder. Nothing imports from here.
"""
