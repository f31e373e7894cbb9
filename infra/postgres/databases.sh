#!/bin/sh
# Run once by the postgres image on an empty volume: a database and a role without other rights for each server.
set -eu
for name in mlflow prefect; do
  psql --username="$POSTGRES_USER" --dbname=postgres --no-psqlrc --set=ON_ERROR_STOP=1 --set=role="$name" --set=password="$(cat "/run/secrets/${name}_database")" <<'SQL'
CREATE ROLE :"role" LOGIN PASSWORD :'password';
CREATE DATABASE :"role" OWNER :"role";
REVOKE CONNECT ON DATABASE :"role" FROM PUBLIC;
SQL
done
