"""Who asks: identities out of certificates and tokens, what each of them may claim, and the TLS port in front."""
