"""The pages, a module each; `register` of each adds its route."""
