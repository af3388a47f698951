"""What people see: the shop and the live dashboard. Speaks to the API by REST and WebSocket only."""
