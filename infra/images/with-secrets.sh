#!/bin/sh
# Each file below /run/secrets that is named like a variable (PGPASSWORD) becomes that variable, then the command runs.
# So a secret is in no compose file, no image and no `docker inspect`.
set -eu
for file in /run/secrets/[A-Z]*; do
  [ -f "$file" ] || continue
  export "$(basename "$file")=$(cat "$file")"
done
exec "$@"
