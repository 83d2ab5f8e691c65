"""The OpenAPI 3.1 document of the API, made from the protos, and the web page that shows it."""
