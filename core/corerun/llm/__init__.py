"""Everything around one model call: messages, client, retries, extraction, prices and the ledger."""
