"""The service behind `pgscatter models serve`: texts to vectors, and texts ranked for a query, over HTTP.

A process of its own, since models use all processor time they get, and the router's event loop must not wait
for them.
"""
