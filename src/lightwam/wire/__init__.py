"""Messages of three robot protocols, without sockets, and robot schemas: which keys a kind of robot uses."""
