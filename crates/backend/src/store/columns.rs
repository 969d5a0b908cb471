//! Columns that hold more than SQL knows: JSON documents and names of enum variants.

use diesel::{
    deserialize::{self, FromSql, FromSqlRow},
    expression::AsExpression,
    pg::{Pg, PgValue},
    serialize::{self, Output, ToSql},
    sql_types::{Double, Jsonb, Nullable, Numeric, Text},
};
use serde::{Serialize, de::DeserializeOwned};
use std::{fmt::Debug, io::Write};

/// A JSON document of a known type.
#[derive(Debug, Clone, PartialEq, AsExpression, FromSqlRow)]
#[diesel(sql_type = Jsonb)]
pub struct Json<T: Debug>(pub T);

impl<T: DeserializeOwned + Debug> FromSql<Jsonb, Pg> for Json<T> {
    fn from_sql(value: PgValue<'_>) -> deserialize::Result<Self> {
        let value = <serde_json::Value as FromSql<Jsonb, Pg>>::from_sql(value)?;
        Ok(Self(serde_json::from_value(value)?))
    }
}

impl<T: Serialize + Debug> ToSql<Jsonb, Pg> for Json<T> {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> serialize::Result {
        // 1 is the version of the binary jsonb format.
        out.write_all(&[1])?;
        serde_json::to_writer(out, &self.0)?;
        Ok(serialize::IsNull::No)
    }
}

diesel::define_sql_function! {
    /// An amount of money for its column, which rounds it to the digits it has.
    #[sql_name = "pg_catalog.numeric"]
    fn to_numeric(amount: Nullable<Double>) -> Nullable<Numeric>;
}

diesel::define_sql_function! {
    /// An amount of money as JSON has it.
    #[sql_name = "pg_catalog.float8"]
    fn to_float(amount: Nullable<Numeric>) -> Nullable<Double>;
}

/// A unit variant, stored under its wire name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, AsExpression, FromSqlRow)]
#[diesel(sql_type = Text)]
pub struct Name<T: Debug>(pub T);

impl<T: DeserializeOwned + Debug> FromSql<Text, Pg> for Name<T> {
    fn from_sql(value: PgValue<'_>) -> deserialize::Result<Self> {
        let name = <String as FromSql<Text, Pg>>::from_sql(value)?;
        Ok(Self(serde_json::from_value(name.into())?))
    }
}

impl<T: Serialize + Debug> ToSql<Text, Pg> for Name<T> {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> serialize::Result {
        match serde_json::to_value(&self.0)? {
            serde_json::Value::String(name) => out.write_all(name.as_bytes())?,
            other => return Err(format!("{other} is not the name of a variant").into()),
        }
        Ok(serialize::IsNull::No)
    }
}
