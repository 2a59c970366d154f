"""What robots' clients say and are told, without a socket: messages of three protocols, and their keys by robot."""
