// A file of its own, because the page's Content-Security-Policy lets no script stand in the page.
SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#api",
  deepLinking: true,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  displayRequestDuration: true,
  filter: true,
  tryItOutEnabled: true,
  // A token is forgotten with the page.
  persistAuthorization: false,
  // Nobody else is told what stands here.
  validatorUrl: null,
});
