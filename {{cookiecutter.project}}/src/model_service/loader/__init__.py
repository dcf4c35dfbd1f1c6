"""From a provider's bytes to rows: fetch, keep, parse, check, commit."""
