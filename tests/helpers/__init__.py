"""What several tests share: data, commands, servers and references."""
