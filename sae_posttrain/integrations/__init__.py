"""The penalty and the steering in other training frameworks."""
