"""What an adversarial user and a failing world do to the whole path, met where the user meets it."""
