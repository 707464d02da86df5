"""Training an embedded world from scratch: autoencoder, then teacher."""
