-- What the workers and the command may do in the ledger: everything a rollout needs, and nothing that hides its traces.
-- Grants go by schema, and default privileges cover what later migrations of the same owner create. A migration that drops
-- and creates the schema `reporting` runs this file again.
-- A managed database may not let us create roles: then nothing is granted, and the administrator runs this file.
DO $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'hotrefresh_app') THEN
        BEGIN
            CREATE ROLE hotrefresh_app NOLOGIN;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;  -- roles belong to the whole server: another ledger on it was upgraded at the same moment
        END;
    END IF;

    GRANT USAGE ON SCHEMA hotrefresh, reporting TO hotrefresh_app;
    GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA hotrefresh TO hotrefresh_app;
    GRANT SELECT ON ALL TABLES IN SCHEMA reporting TO hotrefresh_app;
    ALTER DEFAULT PRIVILEGES IN SCHEMA hotrefresh GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO hotrefresh_app;
    ALTER DEFAULT PRIVILEGES IN SCHEMA reporting GRANT SELECT ON TABLES TO hotrefresh_app;

    -- The audit is added to, never changed; its number and its time are the database's, not the writer's.
    REVOKE ALL ON hotrefresh.audit FROM hotrefresh_app;
    GRANT SELECT, INSERT (actor, action, target, before, after) ON hotrefresh.audit TO hotrefresh_app;
    -- Which schema this is, is the owner's word.
    REVOKE ALL ON hotrefresh.alembic_version FROM hotrefresh_app;
    GRANT SELECT ON hotrefresh.alembic_version TO hotrefresh_app;

    -- Functions that read tables with their owner's rights are for those who may see the result, not for everybody.
    REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA hotrefresh FROM PUBLIC;
    GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA hotrefresh TO hotrefresh_app;
    GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA hotrefresh TO hotrefresh_dashboard;
EXCEPTION WHEN insufficient_privilege OR undefined_object THEN
    RAISE NOTICE 'no right to create the role hotrefresh_app: create hotrefresh_app and hotrefresh_dashboard, then run 0004_roles.sql';
END
$$
