"""What a user can mend."""


class UserError(Exception):
    """A mistake or a lack that the user can mend; the text is one clear sentence for them."""
