"""A family served segment by segment; its server and client need grpc."""
