"""What the API accepts and answers: REST routes, WebSockets, schemas, problems."""
