//! How statements are read: as sqlparser's `GenericDialect`, but for what it reads wrong.
//!
//! Of `a IS DISTINCT FROM b AND c` sqlparser takes `b AND c` for what `a` is compared with; here it is `b`.

use std::any::TypeId;

use datafusion::sql::sqlparser::ast::Expr;
use datafusion::sql::sqlparser::dialect::{Dialect, GenericDialect, Precedence};
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};

/// Our statements.
#[derive(Debug)]
pub(crate) struct Statements;

macro_rules! as_generic {
    ($($name:ident),* $(,)?) => {
        $(
            fn $name(&self) -> bool {
                GenericDialect.$name()
            }
        )*
    };
}

impl Dialect for Statements {
    fn dialect(&self) -> TypeId {
        GenericDialect.dialect()
    }

    fn is_delimited_identifier_start(&self, c: char) -> bool {
        GenericDialect.is_delimited_identifier_start(c)
    }

    fn is_identifier_start(&self, c: char) -> bool {
        GenericDialect.is_identifier_start(c)
    }

    fn is_identifier_part(&self, c: char) -> bool {
        GenericDialect.is_identifier_part(c)
    }

    fn parse_infix(&self, parser: &mut Parser<'_>, left: &Expr, _precedence: u8) -> Option<Result<Expr, ParserError>> {
        let negated = if parser.parse_keywords(&[Keyword::IS, Keyword::DISTINCT, Keyword::FROM]) {
            false
        } else if parser.parse_keywords(&[Keyword::IS, Keyword::NOT, Keyword::DISTINCT, Keyword::FROM]) {
            true
        } else {
            return None;
        };
        let right = parser.parse_subexpr(self.prec_value(Precedence::Is));
        Some(right.map(|right| {
            let (left, right) = (Box::new(left.clone()), Box::new(right));
            if negated { Expr::IsNotDistinctFrom(left, right) } else { Expr::IsDistinctFrom(left, right) }
        }))
    }

    as_generic! {
        supports_unicode_string_literal, supports_partition_by_after_order_by, supports_array_join_syntax,
        supports_group_by_expr, supports_group_by_with_modifier, supports_left_associative_joins_without_parens,
        supports_connect_by, supports_match_recognize, supports_pipe_operator, supports_start_transaction_modifier,
        supports_window_function_null_treatment_arg, supports_dictionary_syntax, supports_window_clause_named_window_reference,
        supports_parenthesized_set_variables, supports_select_wildcard_except, support_map_literal_syntax, allow_extract_custom,
        allow_extract_single_quotes, supports_extract_comma_syntax, supports_create_view_comment_syntax,
        supports_parens_around_table_factor, supports_values_as_table_factor, supports_create_index_with_clause,
        supports_explain_with_utility_options, supports_limit_comma, supports_update_order_by, supports_from_first_select,
        supports_projection_trailing_commas, supports_asc_desc_in_column_definition, supports_try_convert,
        supports_bitwise_shift_operators, supports_comment_on, supports_load_extension,
        supports_named_fn_args_with_assignment_operator, supports_struct_literal, supports_empty_projections,
        supports_nested_comments, supports_multiline_comment_hints, supports_user_host_grantee, supports_string_escape_constant,
        supports_array_typedef_with_brackets, supports_match_against, supports_set_names,
        supports_comma_separated_set_assignments, supports_filter_during_aggregation, supports_select_wildcard_exclude,
        supports_data_type_signed_suffix, supports_interval_options, supports_quote_delimited_string,
        supports_select_wildcard_replace, supports_select_wildcard_ilike, supports_select_wildcard_rename,
        supports_optimize_table, supports_install, supports_detach, supports_prewhere, supports_with_fill, supports_limit_by,
        supports_interpolate, supports_settings, supports_select_format, supports_comment_optimizer_hint,
        supports_constraint_keyword_without_name, supports_key_column_option, supports_comma_separated_trim,
        supports_cte_without_as, supports_select_item_multi_column_alias, supports_xml_expressions,
    }
}

#[cfg(test)]
mod tests {
    use datafusion::sql::sqlparser::ast::BinaryOperator;

    use super::*;

    #[test]
    fn distinct_from_binds_like_a_comparison() {
        let parse = |sql: &str| Parser::new(&Statements).try_with_sql(sql).unwrap().parse_expr().unwrap();
        let Expr::BinaryOp { left, op: BinaryOperator::And, .. } = parse("a IS DISTINCT FROM b + 1 AND c") else { panic!() };
        assert!(matches!(*left, Expr::IsDistinctFrom(..)), "{left:?}");
        let Expr::BinaryOp { left, op: BinaryOperator::Or, .. } = parse("x AND a IS NOT DISTINCT FROM b OR c") else { panic!() };
        let Expr::BinaryOp { right, op: BinaryOperator::And, .. } = *left else { panic!() };
        assert!(matches!(*right, Expr::IsNotDistinctFrom(..)), "{right:?}");
        assert!(matches!(parse("a IS NOT NULL"), Expr::IsNotNull(_)));
    }
}
