"""The market room: reads the world and publishes it, signed; holds no secret that can trade."""
