"""The payment service: payment intents, their attempts, verdicts and refunds."""
