"""What CARSO does, shown: commands that know both the method and the bench."""
