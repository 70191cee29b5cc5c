"""Data, models and programs that show what importance sampling does.

Nothing here is imported by the library itself; install the extra ``experiments``.
"""
