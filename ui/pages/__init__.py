"""Pages and the panels of the dashboard; `register` of a page adds its route."""
