/** Style sheets are imported as text (esbuild's loader `text`) and put on the page once by whoever shows something. */
declare module '*.css' {
  const text: string;
  export default text;
}
