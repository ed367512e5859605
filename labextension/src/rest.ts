/**
 * What is fetched when the sidebar is first seen or a command first used: one part, since who sees one of it soon needs
 * the others, and fewer parts are smaller. The Offers view alone is a part of its own.
 */
export { Actions } from './actions';
export { ClusterActions } from './cluster-actions';
export { sidebar } from './sidebar';
