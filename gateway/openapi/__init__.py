"""The OpenAPI 3.1 document of the API, and the web page that shows it."""
