"""Prequential replay: what the serving code would have recommended, scored by what users took next.

Here because only `infra` may import both `serving` and `training`.
"""
