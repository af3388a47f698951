"""The admin console: replay, simulation, training, models, fault injection, over HTTP."""
